"""Teachers behind HTTP. Importing this package registers the section `http`, without aiohttp and without torch."""

from kdray.teachers.http.input import HttpInput
from kdray.teachers.http.reply import HttpPoll, HttpReply
from kdray.teachers.http.section import HttpTeacherConfig

__all__ = ["HttpInput", "HttpPoll", "HttpReply", "HttpTeacherConfig"]
