"""The velocity network, and the form of it that predictions run on."""
