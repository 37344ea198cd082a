"""Questions and references from files, folders and the hub, row by row checked."""
