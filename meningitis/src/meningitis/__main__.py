"""`python -m meningitis`."""

from meningitis.cli import main

raise SystemExit(main())
