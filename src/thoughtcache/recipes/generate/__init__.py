"""`thoughtcache generate`: a question, a file of questions, a history of messages, or a chat."""
