"""How written answers are read and scored, and files of your own questions. No model needed."""
