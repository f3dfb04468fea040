"""`python -m grafting`."""

from grafting.cli import main

raise SystemExit(main())
