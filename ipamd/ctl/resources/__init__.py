"""The kinds of records that commands name: how each is called, kept, shown and checked.

``kinds`` is the table; each kind has a module of its own.
"""
