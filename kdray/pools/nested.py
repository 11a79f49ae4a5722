"""Pools in other sections: what they say names their fields where they are in the config."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kdray.errors import ConfigError, ImageSetError
from kdray.pools.base import PoolSection


def renamed(text: str, section: PoolSection, field: str) -> str:
    """`text`, in which a section calls its fields pool.NAME, with `field` in the place of pool."""
    names = "|".join(map(re.escape, type(section).model_fields))
    return re.sub(rf"(?<![\w./])pool(?=\.(?:{names})\b)", lambda _: field, text)


@contextmanager
def named(section: PoolSection, field: str) -> Iterator[None]:
    """Errors within this block name the fields of the section as those of `field`, such as pool.of.2."""
    try:
        yield
    except (ConfigError, ImageSetError) as error:
        raise type(error)(renamed(str(error), section, field)) from None
