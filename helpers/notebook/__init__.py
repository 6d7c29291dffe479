"""What the notebook shows: sliders, plots, before and after."""
