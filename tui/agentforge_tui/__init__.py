"""The Textual console of Agent Forge: reads run directories, never imports torch."""
