"""The proving ground: an open corpus that anyone makes again, and experiments on it. A part of the checkout only."""
