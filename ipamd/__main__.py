"""``python -m ipamd`` is ``ipamd``."""

import sys

from ipamd.cli.main import main

sys.exit(main())
