"""Wire types of the OpenAI-style API and the framing of server-sent events; shared by server and fleet, torch-free."""
