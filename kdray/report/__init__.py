"""Reports: one self-contained page per run, with figures as inline SVG."""
