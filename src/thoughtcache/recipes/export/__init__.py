"""`thoughtcache export`: an adapter as a folder for the hub, with a model card that says what is known of it."""
