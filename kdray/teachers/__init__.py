"""Teachers: the models that answer queries. Images go in, and answers come out; nothing else is known of a teacher."""

from kdray.teachers.answers import AnswerFormat, Answers
from kdray.teachers.base import Teacher, TeacherSection

__all__ = ["AnswerFormat", "Answers", "Teacher", "TeacherSection"]
