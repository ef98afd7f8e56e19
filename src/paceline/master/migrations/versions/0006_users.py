"""Users: whose token it is, and who submitted a job. What there was before is the admin's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"  # 0005 is another part's
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("jobs", "tokens"):
        op.add_column(table, sa.Column("user", sa.Text, nullable=False, server_default="admin"))


def downgrade() -> None:
    for table in ("jobs", "tokens"):
        op.drop_column(table, "user")
