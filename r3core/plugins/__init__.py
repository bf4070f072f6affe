"""Plugins: how tasks are found, their options, readable errors for plugin bugs, and templates of new packages."""
