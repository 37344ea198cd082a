"""What a run is: its configuration, its folder, what it may change on resume, and its checks."""
