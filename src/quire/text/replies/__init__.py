"""What a model wrote, told apart while it arrives: reasoning, content and tool calls; and grammars that force calls."""
