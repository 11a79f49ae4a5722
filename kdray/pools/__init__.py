"""Virtual pools of candidates: int64 id to uint8 image, nothing stored but the real images."""
