"""What dense heads learn: which prior learns which object, and whether the parts that say so fit."""
