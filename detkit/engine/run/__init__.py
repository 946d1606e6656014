"""A run: the runner, the builders and checks of its parts, its training loops and the step that they take."""
