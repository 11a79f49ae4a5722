"""Teachers behind HTTP. Importing this package registers the section `http`, without aiohttp and without torch."""

from kdray.teachers.http.section import HttpInput, HttpReply, HttpTeacherConfig

__all__ = ["HttpInput", "HttpReply", "HttpTeacherConfig"]
