"""Run by Python when a process starts that has this folder on its path."""

import injection

injection.install()
