"""What several commands share; imports none of them."""
