"""What models are trained on and how, as TOML: `data/` holds mixtures of sources, `runs/` plans of runs."""
