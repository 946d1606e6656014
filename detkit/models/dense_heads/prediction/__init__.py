"""From the maps of a dense head to boxes and detections."""
