"""Scoring a pool with the student and finding the k lowest: exactly, or by far fewer forward passes."""

from kdray.search.local import LocalSearcher, probe
from kdray.search.lowest import LowestK, Scored
from kdray.search.method import Found, Method, Searcher, SearchRequest, run_search

__all__ = [
    "Found",
    "LocalSearcher",
    "LowestK",
    "Method",
    "Scored",
    "SearchRequest",
    "Searcher",
    "probe",
    "run_search",
]
