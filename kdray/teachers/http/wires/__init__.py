"""The wire formats that come with kdray, one a module: what requests look like, and where a reply has the answer."""
