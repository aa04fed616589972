"""``python -m tollgate.cli``"""

from tollgate.cli import main

main()
