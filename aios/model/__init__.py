"""Networks: the shared backbone, its heads, the sentence encoder and imports of published weights."""
