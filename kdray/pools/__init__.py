"""Virtual pools of candidates. A pool maps int64 ids to uint8 images and stores only the real images."""
