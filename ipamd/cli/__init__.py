"""The command lines: what a person or a unit file types. Nothing in ipamd imports them."""
