// One round body with bumps, lit, before a pattern.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) - 0.3 * (vec2(random(0), random(1)) - 0.5);
    float angle = atan(p.y, p.x) + 0.4 * iTime, edge = between(2, 0.45, 0.8);
    for (int k = 2; k < 6; k++) edge += between(k + 10, 0.0, 0.22) / float(k) * sin(float(k) * angle
        + TAU * random(k + 20) + iTime);
    float far = length(p) / edge, cover = inside((far - 1.0) * edge, 0.08);
    float dome = sqrt(max(1.0 - far * far, 0.0));
    vec3 normal = normalize(vec3(p / edge + 0.3 * vec2(gradient(4.0 * p), gradient(4.0 * p + 20.0)) * between(3,
        0.0, 2.0), dome + 0.1));
    vec3 own = mix(ink(4), palette(noise(between(5, 1.0, 4.0) * p) + 0.2 * far), random(6));
    float back = 0.5 + 0.5 * sin(dot(p, vec2(cos(TAU * random(7)), sin(TAU * random(7)))) * between(8, 1.0,
        12.0) + iTime);
    colour = vec4(mix(mix(ink(9), ink(10), back), own * lit(normal), cover), 1);
}
