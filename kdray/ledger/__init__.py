"""The ledger: the durable record of every answer bought, and the one place that may spend."""

from kdray.ledger.store import Ledger, Reservation, hash_images

__all__ = ["Ledger", "Reservation", "hash_images"]
