"""The command ``ipamctl``: see and steer a node's addresses, in the words operators know.

By stage of a command: ``main`` (the command line), ``command`` (what all commands share: how they are declared, run
and ended), ``target`` (how records are reached), ``commands`` (one module for each group), ``resources`` (kinds: keys,
columns, validation), ``output`` (the forms of ``-o``). Every command is written once, over ``target.Records``; whether
they are behind the daemon's socket, in etcd or in a file is not its business.

May import ``core``, ``config``, ``host`` and, in ``target`` and ``relayed`` alone, ``store``. Nothing imports it.
"""
