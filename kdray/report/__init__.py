"""Reports: figures as inline SVG, and one self-contained page a run."""
