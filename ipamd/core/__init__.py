"""The decisions: pools, blocks, reserve and ledger.

Pure and deterministic: no await, clock, randomness, file, socket or log. Time comes in as an argument, facts go
out as values; the caller makes the facts durable and then replies. Imports nothing of ipamd outside this folder.
"""
