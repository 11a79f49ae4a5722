// Circles, boxes, triangles and crosses with gradients, over one another.
float outline(vec2 q, int kind) {
    vec2 a = abs(q);
    if (kind == 0) return length(q) - 1.0;
    if (kind == 1) return max(a.x, a.y) - 0.85;
    if (kind == 2) return max(a.x * 0.866 + q.y * 0.5, -q.y) - 0.6;
    if (kind == 3) return max(min(a.x, a.y) - 0.3, max(a.x, a.y) - 1.0);
    return abs(length(q) - 0.75) - 0.22;
}

void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), side = vec2(cos(TAU * random(0)), sin(TAU * random(0)));
    vec3 sum = mix(ink(1), ink(2), 0.5 + 0.5 * dot(p, side));
    int shapes = count(3, 2, 6);
    for (int k = 0; k < shapes; k++) {
        int b = 10 * (k + 1);
        float size = between(b, 0.2, 0.7);
        vec2 centre = vec2(between(b + 1, -0.8, 0.8), between(b + 2, -0.8, 0.8));
        centre += 0.2 * vec2(sin(iTime + TAU * random(b + 3)), cos(iTime + TAU * random(b + 4)));
        vec2 q = turn(TAU * random(b + 5) + 0.5 * iTime) * (p - centre) / size;
        float cover = inside(outline(q, count(b + 6, 0, 4)), 0.07 / size);
        vec3 own = mix(ink(b + 7), ink(b + 8), clamp(0.5 + 0.5 * q.x, 0.0, 1.0));
        sum = mix(sum, own, cover * between(b + 9, 0.7, 1.0));
    }
    colour = vec4(sum, 1);
}
