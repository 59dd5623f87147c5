"""The flows of one network: the path it is trained on, and what is solved to classify and to generate."""
