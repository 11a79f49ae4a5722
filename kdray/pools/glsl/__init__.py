"""GLSL fragment programs: what forms they have, how OpenGL draws them, and which of them can be used."""
