"""Teachers: whatever answers queries. Only images go in, and only answers come out."""

from kdray.teachers.answers import AnswerFormat, Answers, Teacher

__all__ = ["AnswerFormat", "Answers", "Teacher"]
