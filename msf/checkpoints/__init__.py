"""Networks on disk: our checkpoint folders, and the files of the authors."""
