"""What predictions are worth: uncertainties, and how well they rank errors."""
