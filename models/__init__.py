"""What a model is and where it comes from: contract, sources, students, data."""
