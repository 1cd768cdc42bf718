"""``python -m ipamd.ctl`` is ``ipamctl``."""

import sys

from ipamd.ctl.main import main

sys.exit(main())
