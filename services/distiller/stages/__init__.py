"""The stages of the recipe, in order: adapter, label, slm, calibrate. Each resumes by itself."""
