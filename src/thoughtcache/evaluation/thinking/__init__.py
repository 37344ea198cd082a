"""Deep-thinking ratio and Think@n: how late in the layers a prediction settles, and answers chosen by it."""
