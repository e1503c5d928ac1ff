"""Imported by the fork server, whose programs inherit what is read here."""

from tests.warm import warm_up

warm_up()
