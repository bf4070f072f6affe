"""Text generation: the contract of an engine, the engines that r3core brings, and chat templates."""
