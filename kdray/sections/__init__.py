"""What config sections are made of. Every part's section is built on this; `kdray.config` puts them together."""

from kdray.sections.base import Section
from kdray.sections.registry import Registry

__all__ = ["Registry", "Section"]
