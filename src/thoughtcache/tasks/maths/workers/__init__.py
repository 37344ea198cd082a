"""The processes in which answers are compared by computer algebra."""
